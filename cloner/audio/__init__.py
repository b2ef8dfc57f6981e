"""What a recording is, found out by decoding it in processes of its own."""
