"""Services on this machine that stand in for a provider's: a STAC API and a blob storage.

`blob_server` is the program of a storage that gives byte ranges to those who hold a signature
and fails on demand, `storage` starts and controls it, `stac_api` starts a STAC API on
PostgreSQL, `provider` brings the virtual landscape into the provider's forms. Servers are
processes of their own that end with the process that started them, however it ends.
"""
