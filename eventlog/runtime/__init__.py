"""What the process gives: its event loop, threads and identity, logging, and text that is safe to print."""
