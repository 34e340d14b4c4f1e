#!/bin/sh
# Train the next version if drift was found: for cron, a webhook or a pipeline.
#
#   retrain.sh BUNDLE DATA OUT
#
# What decides is the signed monitoring report about BUNDLE beside the plan, never who calls
# this. Ends with 0 where nothing has drifted, where a new bundle is in OUT, and where
# another call is at work; with 1 or 2 somebody has to look.
set -u
bundle=$1 data=$2 out=$3

exec 9>"$out.lock"
flock -n 9 || { echo "another retraining to $out is at work"; exit 0; }
if [ -e "$out" ]; then
  echo "$out is there already: assess, sign, admit and promote it, or move it away"
  exit 0
fi

"${PYTHON:-python}" -m security retrain "$bundle" --data "$data" --out "$out" --if-drifted
code=$?
case $code in
  0) echo "retrained: assess, sign and admit $out, then try it as a shadow" ;;
  3) echo "nothing has drifted"; code=0 ;;
  1) echo "refused: see above; is the monitoring report fresh?" >&2 ;;
  *) echo "failed with $code: see above" >&2 ;;
esac
exit "$code"
