/**
 * Builds the addon, build/Release/uniproc.node, and in a clone also the one of tests and benchmarks,
 * build/Release/uniproc_testing.node: with CMake where there is one, else with the node-gyp that every
 * npm brings (`npm run build:native -- --gyp` asks for that).
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
  if (!nodeGyp) throw new Error('npm brings node-gyp: run this as `npm run build:native`');
  // Node's own headers, where they lie beside it, as in its official archives: nothing to download.
  const prefix = path.join(path.dirname(process.execPath), '..');
  const headers = existsSync(path.join(prefix, 'include/node/node_api.h'));
  run(nodeGyp, ['rebuild', '--jobs', jobs, ...(headers ? [`--nodedir=${prefix}`] : [])]);
}

if (process.argv.includes('--gyp')) {
  buildWithNodeGyp();
} else if (spawnSync('cmake', ['--version']).status !== 0) {
  console.log('uniproc: CMake not found, building the CPU backend with node-gyp');
  buildWithNodeGyp();
} else {
  buildWithCMake();
}
