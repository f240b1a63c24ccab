"""How hosts are connected: by Dask distributed, over TLS, with certificates that come from one token."""
