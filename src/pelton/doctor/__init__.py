"""`pelton doctor`: is this machine ready? One file per check under checks/; each problem comes with its mend."""
