"""`python -m keras_pg`, the same as `keras-pg`, but slower to start."""

import sys

from keras_pg_cli import main

sys.exit(main())
