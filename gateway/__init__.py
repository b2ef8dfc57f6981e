"""Takes signed webhooks over HTTP and hands each call to the cloner over gRPC."""
