#!/usr/bin/env bash
# Makes the environment of one real server: bash tests/servers/make_env.sh triton|mlserver|ray PYTHON
# PYTHON is that of an environment with hrt and torch (make setup). The new one is laid over it: torch, hrt and all that
# hrt needs come from there, so that torch is installed once; only the server, and what it wants older, is its own.
# Prints the environment's folder. Made once, until its requirements or this script change.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
server="${1:?which server: triton, mlserver or ray}"
python="${2:?the Python of the environment that holds hrt}"
wanted="$here/$server.txt"
test -f "$wanted" || { echo "make_env.sh: found server '$server', expected triton, mlserver or ray" >&2; exit 2; }

folder="$here/../../.venv-servers/$server"
mkdir -p "$folder"
folder="$(cd "$folder" && pwd)"
exec 9>"$folder.lock"
flock 9  # two test runs may want it at once
base="$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
stamp="$({ ls -d "$base"/*.dist-info; cat "$wanted" "${BASH_SOURCE[0]}"; } | sha256sum)"
if [ "$(cat "$folder/.stamp" 2>/dev/null)" != "$stamp" ]; then
  rm -rf "$folder"
  "$python" -m venv --without-pip "$folder"
  site="$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  # Behind the environment's own packages, and with the base's .pth files, one of which finds an editable hrt.
  printf 'import site; site.addsitedir(%s)\n' "'$base'" > "$site/hrt_base.pth"
  "$folder/bin/python" -m pip install -qq --disable-pip-version-check -r "$wanted" >&2
  echo "$stamp" > "$folder/.stamp"
fi
echo "$folder"
