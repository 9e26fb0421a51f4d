"""gRPC in and out of a scorer. The scorer is the library's and knows nothing of this."""
