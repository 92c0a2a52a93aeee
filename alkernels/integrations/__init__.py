"""Other libraries' interfaces on our kernels, a module each; a host is imported with its module, never before."""
