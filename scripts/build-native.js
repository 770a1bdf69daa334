/**
 * Builds the addon, build/Release/uniproc.node, and in a clone also the addon for tests and benchmarks,
 * build/Release/uniproc_testing.node: with CMake if installed, else with npm's node-gyp
 * (`npm run build:native -- --gyp` selects it). As the package's install script it builds nothing if
 * the prebuilt addon of a platform package loads (scripts/prebuild.js), unless npm is run with
 * --build-from-source.
 */
'use strict';

const { spawnSync } = require('node:child_process');
const { existsSync } = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const jobs = String(os.availableParallelism());

function run(script, args) {
  const { status, error } = spawnSync(process.execPath, [script, ...args], {
    cwd: path.join(__dirname, '..'),
    stdio: 'inherit',
  });
  if (error) throw error;
  process.exitCode = status ?? 1;
}

function buildWithCMake() {
  run(require.resolve('cmake-js/bin/cmake-js'), ['build', '--parallel', jobs]);
}

function buildWithNodeGyp() {
  const nodeGyp = process.env.npm_config_node_gyp;
  if (!nodeGyp) throw new Error('node-gyp comes with npm; run `npm run build:native`');
  // Use Node's headers if installed, as in its official archives, instead of downloading them.
  const prefix = path.join(path.dirname(process.execPath), '..');
  const headers = existsSync(path.join(prefix, 'include/node/node_api.h'));
  run(nodeGyp, ['rebuild', '--jobs', jobs, ...(headers ? [`--nodedir=${prefix}`] : [])]);
}

/** Whether this is an install that needs no build. */
function usesPrebuilt() {
  const { npm_lifecycle_event: script, npm_config_build_from_source: fromSource } = process.env;
  if (script !== 'install' || (fromSource && fromSource !== 'false')) return false;
  const name = `@uniproc/${process.platform}-${process.arch}`;
  try {
    require(`${name}/uniproc.node`);
    return true;
  } catch (error) {
    // Too old a C library, for example.
    if (error.code !== 'MODULE_NOT_FOUND') {
      console.log(`uniproc: building from source, since ${name} does not load: ${error.message}`);
    }
    return false;
  }
}

if (usesPrebuilt()) {
  console.log('uniproc: using the prebuilt addon');
} else if (process.argv.includes('--gyp')) {
  buildWithNodeGyp();
} else if (spawnSync('cmake', ['--version']).status !== 0) {
  console.log('uniproc: CMake not found, building the CPU backend with node-gyp');
  buildWithNodeGyp();
} else {
  buildWithCMake();
}
