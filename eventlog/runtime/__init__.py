"""The process at run time: its event loop, threads and identity, logging, and text that is safe to print."""
