"""LensJAX: which of these language models should we fine-tune on our data?"""

__version__ = "0.1.0"
