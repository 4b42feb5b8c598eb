"""A result as one page for a browser, from its JSON alone."""

from onnx_cbq.pages.page import PAGES, make_page

__all__ = ["PAGES", "make_page"]
