"""What people look at: tables from records, figures from regions."""
