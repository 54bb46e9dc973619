# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
#
# What scripts/buildenv and scripts/in-env have in common: where the cache
# is, which tools tree belongs to this checkout, how a tree is entered.

MARS_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
MARS_CACHE=${MARS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mars}
export MARS_ROOT MARS_CACHE

# The one place where releases are named.
# shellcheck disable=SC2034 # some are for those that include this file
MARS_SUITE=trixie MARS_SERIES=7.3 MARS_FLAVOUR=cloud-amd64
# Raise it when the way a tree is built changes, not only its packages.
MARS_TOOLS_REVISION=1
# The same for the kernel of the debug lane and its configuration.
MARS_DEBUG_REVISION=1

die()
{
	printf '%s: %s\n' "${0##*/}" "$*" >&2
	exit 1
}

# The names in scripts/env-packages, without comments.
tools_packages()
{
	sed -e 's/#.*//' "$MARS_ROOT/scripts/env-packages" | xargs -n1
}

tools_id()
{
	local sum
	sum=$({
		echo "$MARS_SUITE $MARS_TOOLS_REVISION"
		tools_packages | sort
	} | sha256sum) || return
	echo "$MARS_SUITE-${sum:0:12}"
}

# Settings of one checkout's tree; several checkouts may share a cache.
env_file()
{
	echo "$MARS_CACHE/env-$(tools_id).sh"
}

# The lines of the debug kernel's configuration that mean something.
debug_options()
{
	grep -E '^(CONFIG_[A-Z0-9_]+=|# CONFIG_[A-Z0-9_]+ is not set$)' "$MARS_ROOT/scripts/debug-kernel.config"
}

# Where the kernel of the debug lane is, once the tree's settings are known.
debug_folder()
{
	local sum
	sum=$({
		echo "$MARS_KVERSION $MARS_DEBUG_REVISION"
		debug_options
	} | sha256sum) || return
	echo "${MARS_KSRC%/*}/debug-${sum:0:12}"
}

# enter_tree TREE CMD [ARG...]: see scripts/env-enter.
enter_tree()
{
	local tree=$1
	shift
	local -a binds=(/tmp "$MARS_CACHE" "$MARS_ROOT")
	local dir common

	# A worktree's history lies elsewhere.
	if [[ -f $MARS_ROOT/.git ]] && common=$(git -C "$MARS_ROOT" \
		rev-parse --path-format=absolute --git-common-dir 2>/dev/null); then
		binds+=("$common")
	fi
	binds+=("$PWD")
	while IFS= read -r -d : dir; do
		[[ -n $dir ]] && binds+=("$dir")
	done <<<"${MARS_BIND:-}:"
	for dir in "${SSL_CERT_FILE:-}" "${CURL_CA_BUNDLE:-}" "${CARGO_HTTP_CAINFO:-}" \
		"${GIT_SSL_CAINFO:-}" "${REQUESTS_CA_BUNDLE:-}" "${PIP_CERT:-}" \
		/etc/hosts /etc/resolv.conf /etc/ssl/certs \
		/usr/share/ca-certificates /usr/local/share/ca-certificates; do
		[[ -n $dir && -e $dir ]] && binds+=("$dir")
	done

	mkdir -p "$MARS_CACHE/home" "$MARS_CACHE/cargo"
	# Mirrors and credentials helpers that the user has set up for cargo.
	for dir in config.toml config; do
		if [[ -e $HOME/.cargo/$dir && ! -e $MARS_CACHE/cargo/$dir ]]; then
			cp "$HOME/.cargo/$dir" "$MARS_CACHE/cargo/$dir"
		fi
	done

	# What belongs to the host's toolchains must not leak into the tree.
	local -a env=(-u TMPDIR -u LD_LIBRARY_PATH -u LD_PRELOAD -u LC_ALL -u LANGUAGE
		-u RUSTUP_HOME -u RUSTUP_TOOLCHAIN -u RUSTC -u RUSTC_WRAPPER -u RUSTFLAGS
		-u PYTHONPATH -u PYTHONHOME -u VIRTUAL_ENV -u PYENV_ROOT -u PYENV_VERSION
		-u CC -u CXX -u LD -u CFLAGS -u CXXFLAGS -u LDFLAGS -u ARCH -u CROSS_COMPILE
		-u KBUILD_OUTPUT -u KCFLAGS -u KRUSTFLAGS -u BASH_ENV -u ENV
		MARS_IN_ENV=1
		PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
		HOME="$MARS_CACHE/home" CARGO_HOME="$MARS_CACHE/cargo"
		CARGO_TARGET_DIR="$MARS_ROOT/build/cargo"
		LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive
		GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory 'GIT_CONFIG_VALUE_0=*')
	[[ -n ${SSL_CERT_FILE:-} ]] &&
		env+=(CARGO_HTTP_CAINFO="${CARGO_HTTP_CAINFO:-$SSL_CERT_FILE}")

	exec env "${env[@]}" perl "$MARS_ROOT/scripts/env-enter" "$tree" "${binds[@]}" -- "$@"
}
