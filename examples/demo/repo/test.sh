#!/bin/sh
# Tests leap.sh.
# shellcheck source=/dev/null
. ./leap.sh
failed=0
for year in 1996 2000 2024; do
    leap "$year" || { echo "FAIL: $year is a leap year"; failed=1; }
done
for year in 1900 2023 2100; do
    ! leap "$year" || { echo "FAIL: $year is not a leap year"; failed=1; }
done
[ "$failed" = 0 ] && echo "all tests pass"
exit "$failed"
