"""The file that is scored: its container, the codecs that squeeze it, and the ledger of its bytes."""
