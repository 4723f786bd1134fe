"""Lets ``python -m sparse_retrieval.cli`` do what ``sparse-retrieval`` does."""

import sys

from sparse_retrieval.cli import main

sys.exit(main())
