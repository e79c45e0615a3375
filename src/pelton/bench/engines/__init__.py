"""Several servers on one machine: started in turn, checked to serve the same model, measured in interleaved rounds."""
