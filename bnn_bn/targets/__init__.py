"""Where a packed network runs without this package. Imports `core`, `onebit`, `images`
and `deploy`.

c_kernels, c_memory, export_c  one C99 file without a library: its loops, its memory, its text
runtime                        the modules that run a packed file, as a package without torch
wasm, web                      the kernels as WebAssembly; a page that runs a network in a browser
"""
