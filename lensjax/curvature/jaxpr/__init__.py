"""Interpreters of jaxprs: linear uses of parameters, and second derivatives."""
