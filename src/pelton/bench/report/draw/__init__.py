"""Draws the report's figures to SVG and PNG without a browser."""
