"""Reports: tables from records, figures from measured candidates. They need no network."""
