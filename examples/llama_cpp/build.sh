#!/usr/bin/env bash
# Builds llama.cpp's llama-server from the sources vendored in the llama-cpp-python sdist on PyPI, into .cache/ beside
# this file. Needs a C++ compiler, make and Python 3.10+ with venv; cmake comes from PATH, else from PyPI. Does nothing
# when the pinned version is already there. Set JOBS for more than two compilers at a time.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=$here/.cache
version=0.3.36 # of llama-cpp-python; the llama.cpp in it is what the README's figures were taken with
jobs=${JOBS:-2}

if [[ -x $cache/llama-server && -x $cache/venv/bin/python && $(cat "$cache/version" 2>/dev/null) == "$version" ]]; then
    echo "llama-server $version is already built in $cache"
    exit 0
fi
for tool in c++ make python3; do
    command -v "$tool" >/dev/null || { echo "build.sh: $tool is not on PATH; install it and try again." >&2; exit 1; }
done

# scikit-build-core is there only because pip reads a source package's metadata before it will save it.
mkdir -p "$cache"
[[ -x $cache/venv/bin/python ]] || python3 -m venv "$cache/venv"
pip=("$cache/venv/bin/python" -m pip --quiet --disable-pip-version-check)
"${pip[@]}" install gguf==0.19.0 numpy scikit-build-core==1.1.2
cmake=$(command -v cmake || true)
if [[ -z $cmake ]]; then
    "${pip[@]}" install cmake
    cmake=$cache/venv/bin/cmake
fi

source=$cache/llama_cpp_python-$version
if [[ ! -f $source/unpacked ]]; then
    "${pip[@]}" download --no-binary llama-cpp-python --no-deps --no-build-isolation --dest "$cache" \
        "llama-cpp-python==$version"
    rm -rf "$source"
    tar -xzf "$source.tar.gz" -C "$cache" "llama_cpp_python-$version/vendor/llama.cpp"
    touch "$source/unpacked"
fi

# The build number and commit are given so that llama.cpp does not report those of the repository around it.
"$cmake" -S "$source/vendor/llama.cpp" -B "$source/build" \
    -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_NUMBER=0 -DLLAMA_BUILD_COMMIT="py$version" \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF \
    -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF >"$cache/build.log" 2>&1 ||
    { echo "build.sh: cmake could not configure llama.cpp; see $cache/build.log." >&2; exit 1; }
echo "building llama-server $version with $jobs jobs (about 6 minutes on two cores; log in $cache/build.log)"
nice -n 10 "$cmake" --build "$source/build" --target llama-server -j "$jobs" >>"$cache/build.log" 2>&1 ||
    { echo "build.sh: llama.cpp did not compile; see the end of $cache/build.log." >&2; exit 1; }

mv "$source/build/bin/llama-server" "$cache/llama-server"
echo "$version" >"$cache/version"
rm -rf "$source" "$source.tar.gz"
echo "built $cache/llama-server"
