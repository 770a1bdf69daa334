/**
 * Builds the addon, build/Release/uniproc.node, and in a clone also the addon for tests and benchmarks,
 * build/Release/uniproc_testing.node: with CMake if installed, else with npm's node-gyp
 * (`npm run build:native -- --gyp` selects it).
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

if (process.argv.includes('--gyp')) {
  buildWithNodeGyp();
} else if (spawnSync('cmake', ['--version']).status !== 0) {
  console.log('uniproc: CMake not found, building the CPU backend with node-gyp');
  buildWithNodeGyp();
} else {
  buildWithCMake();
}
