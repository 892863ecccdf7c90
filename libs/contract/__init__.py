"""What programs agree on beside the protos: data only; it imports nothing of ours."""
