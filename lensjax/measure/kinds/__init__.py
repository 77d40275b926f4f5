"""The measurements of studies, one module each, named as study.yaml and the journal name them."""
