"""What the two forms of solving SVMs share: what is to be solved, and how it is published."""

import logging

log = logging.getLogger(__name__)


# --- how it is solved --------------------------------------------------------------------------


# --- what is published -------------------------------------------------------------------------
