"""`python -m keras_pg`, the same as `keras-pg`."""

import sys

from keras_pg.cli import main

sys.exit(main())
