"""Every test run checks the shapes that the library's signatures promise."""

from jaxtyping import install_import_hook

hook = install_import_hook("marigold", "beartype.beartype")
