#!/bin/bash
@{header}
# Written by `bdia-exp submit`: @{title}
# It may be started again at any time: it continues, and makes no image again that is whole.
# shellcheck disable=SC1090,SC1091

set -e # without -u, which the files that activate an environment often do not bear
cd @{folder}
@{setup}set -euo pipefail

@{task}

@{nodes}

# The work runs in the background, because bash handles no signal while it waits for a command in
# the foreground. A signal goes on to the work, which ends with 128 + the signal's number and leaves
# nothing half-written.
work=''
signal=''
trap 'pass_on USR1' USR1
trap 'pass_on TERM' TERM INT
pass_on() {
    signal=$1
    ended=no
    [[ -z $work ]] || kill -s "$signal" "$work" || true
}

@{command} &
work=$!
[[ -z $signal ]] || pass_on "$signal"

ended=no
while [[ $ended = no ]]; do
    ended=yes # unless a signal ends the wait
    status=0
    wait "$work" || status=$?
done

@{requeue}

exit "$status"
