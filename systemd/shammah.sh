#!/bin/sh
# The command on the box's own home. Run it by sudo: it works as the home's user.
SHAMMAH_HOME="${SHAMMAH_HOME:-/var/lib/shammah}" exec @PYTHON@ -P -m appliance.cli "$@"
