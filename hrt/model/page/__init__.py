"""The report as one web page that loads nothing: figures of a certificate, pictures of the layers."""

from hrt.model.page.facts import BATCHES
from hrt.model.page.page import MOST_BYTES, write_page

__all__ = ["BATCHES", "MOST_BYTES", "write_page"]
