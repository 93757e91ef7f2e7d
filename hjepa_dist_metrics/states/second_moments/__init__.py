"""Covariances of rows: plain, of two sides for the HSIC, between and within classes."""
