/**
 * Builds the addon, build/Release/uniproc.node, and in a clone also the addon for tests and benchmarks,
 * build/Release/uniproc_testing.node: with CMake if installed, else with npm's node-gyp.
 *
 *     npm run build:native -- [--gyp [--nodedir=FOLDER]] [--out FOLDER] [--CDNAME=VALUE...]
 *
 * `--gyp` selects node-gyp, and `--nodedir` the folder with Node's headers; with CMake, `--out` selects a
 * folder other than build/, and `--CD` sets a variable.
 *
 * CMake builds the CUDA backend too where it can, build/Release/uniproc_cuda.so. If that fails, the CPU
 * backend remains: the last line says why, build/cuda.log has the compiler's output, and the exit
 * status is 0. A build from the package leaves no object files behind.
 *
 * As the package's install script it builds nothing if the prebuilt addon of a platform package loads
 * (scripts/prebuild.js), unless npm is run with --build-from-source.
 */
'use strict';

const { spawn, spawnSync } = require('node:child_process');
const {
  appendFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
} = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const ROOT = path.join(__dirname, '..');
/** The package has no native/addon_testing. */
const IS_CLONE = existsSync(path.join(ROOT, 'native', 'addon_testing'));
const JOBS = String(os.availableParallelism());

/** Runs a script; resolves to whether it exited with 0. With `log`, a file, its output goes there too. */
function run(script, args, { env, log } = {}) {
  const child = spawn(process.execPath, [script, ...args], {
    cwd: ROOT,
    env: { ...process.env, ...env },
    stdio: log ? ['inherit', 'pipe', 'pipe'] : 'inherit',
  });
  for (const name of log ? ['stdout', 'stderr'] : []) {
    child[name].on('data', (data) => {
      process[name].write(data);
      appendFileSync(log, data);
    });
  }
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code) => resolve(code === 0));
  });
}

/** CMake's files name their folders, so they are of no use once those have moved. */
function removeBuildOfOtherFolder(out) {
  const cache = path.join(out, 'CMakeCache.txt');
  if (!existsSync(cache)) return;
  const text = readFileSync(cache, 'utf8');
  const isHere = (variable, folder) => {
    const recorded = new RegExp(`^${variable}:INTERNAL=(.*)$`, 'm').exec(text)?.[1];
    return existsSync(recorded ?? '') && realpathSync(recorded) === realpathSync(folder);
  };
  if (isHere('CMAKE_HOME_DIRECTORY', ROOT) && isHere('CMAKE_CACHEFILE_DIR', out)) return;
  console.log(`uniproc: ${out} was built in another folder; building it anew`);
  for (const name of ['CMakeCache.txt', 'CMakeFiles', 'Release']) {
    rmSync(path.join(out, name), { recursive: true, force: true });
  }
}

/** The first error of the compiler or linker, or of CMake. */
function firstErrorIn(log) {
  const text = readFileSync(log, 'utf8');
  const ofCompiler = /^.*\b(?:error\s*:|fatal\s*:|cannot find|undefined reference).*$/m.exec(
    text,
  )?.[0];
  const ofCMake = /^CMake Error .*\n((?: .*\n)+)/m.exec(text)?.[1];
  return (ofCompiler ?? ofCMake ?? 'the build ended').trim().replace(/\s+/g, ' ');
}

async function buildWithCMake(out, variables) {
  removeBuildOfOtherFolder(out);
  mkdirSync(out, { recursive: true });
  const log = path.join(out, 'cuda.log');
  rmSync(log, { force: true });
  const cmakeJs = (command, args, options) =>
    run(
      require.resolve('cmake-js/bin/cmake-js'),
      [command, '--out', out, ...variables, ...args],
      options,
    );
  const configure = (options) => cmakeJs('configure', [], options);
  const build = (target, options) =>
    cmakeJs('build', ['--target', target, '--parallel', JOBS], options);

  const isConfigured = await configure({ log });
  if (!isConfigured && !(await configure({ env: { UNIPROC_CUDA: '0' } }))) return false;
  if (!(await build('cpu'))) return false;
  if (isConfigured && (await build('cuda', { log }))) {
    rmSync(log, { force: true });
  } else {
    // An older build's does not fit the new addon.
    rmSync(path.join(out, 'Release', 'uniproc_cuda.so'), { force: true });
    console.error(
      `uniproc: the CUDA backend was not built, the CPU backend was: ${firstErrorIn(log)} (see ${log})`,
    );
  }
  return true;
}

function buildWithNodeGyp(args) {
  const nodeGyp = process.env.npm_config_node_gyp;
  if (!nodeGyp) throw new Error('node-gyp comes with npm; run `npm run build:native`');
  const nodedir = args.filter((argument) => argument.startsWith('--nodedir='));
  // Use Node's headers if installed, as in its official archives, instead of downloading them.
  const prefix = path.join(path.dirname(process.execPath), '..');
  if (nodedir.length === 0 && existsSync(path.join(prefix, 'include/node/node_api.h'))) {
    nodedir.push(`--nodedir=${prefix}`);
  }
  return run(nodeGyp, ['rebuild', '--jobs', JOBS, ...nodedir]);
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

/** Leaves the shared objects and a failed build's log. */
function removeObjectFiles(out) {
  const release = path.join(out, 'Release');
  for (const [folder, kept] of [
    [out, /^(Release|cuda\.log)$/],
    [release, /\.(node|so)$/],
  ]) {
    for (const name of readdirSync(folder)) {
      if (!kept.test(name)) rmSync(path.join(folder, name), { recursive: true });
    }
  }
}

async function main(args) {
  if (usesPrebuilt()) {
    console.log('uniproc: using the prebuilt addon');
    return;
  }
  const at = args.indexOf('--out');
  const out = path.resolve(ROOT, at < 0 ? 'build' : args[at + 1]);
  const variables = args.filter((argument) => argument.startsWith('--CD'));
  let isBuilt;
  if (args.includes('--gyp')) {
    isBuilt = await buildWithNodeGyp(args);
  } else if (spawnSync('cmake', ['--version']).status !== 0) {
    console.log('uniproc: CMake not found, building the CPU backend with node-gyp');
    isBuilt = await buildWithNodeGyp(args);
  } else {
    isBuilt = await buildWithCMake(out, variables);
  }
  if (isBuilt && !IS_CLONE) removeObjectFiles(out);
  if (!isBuilt) process.exitCode = 1;
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
