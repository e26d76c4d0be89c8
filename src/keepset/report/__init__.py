"""What readers see: tables, the ledger, figures."""
