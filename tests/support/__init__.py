"""What tests share: servers, installations, callers, paths."""
