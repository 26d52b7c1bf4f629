"""Reports: tables from records and figures from measured candidates. No neural network is run."""
