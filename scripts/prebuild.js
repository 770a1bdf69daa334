/**
 * `npm run prebuild`: packs what is published into build/prebuild: the platform packages with the
 * prebuilt addons, and the package uniproc, which has them as optional dependencies. The packages that
 * this machine cannot build are left out, with the reason and the remedy; `npm run prebuild:all` fails
 * then.
 *
 * The optional dependencies are added here, not in package.json: before a version is published,
 * `npm ci` in a clone would not find them.
 */
'use strict';

const { execFileSync, spawnSync } = require('node:child_process');
const { copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } = require('node:fs');
const os = require('node:os');
const path = require('node:path');

/** The oldest glibc that loads the addons: that of RHEL 9, Amazon Linux 2023, Ubuntu 22.04. */
const GLIBC_FLOOR = '2.34';
/** Of a packed package. Registries take many times as much. */
const MAX_PACKED_BYTES = 16 * 2 ** 20;
/** Shared libraries that an addon may need: glibc's, the unwinder of GCC and, on a GPU, cuBLASLt. */
const HOST_LIBRARIES = /^(lib(c|m|dl|rt|pthread|gcc_s)|ld-linux-.*)\.so\.\d+$/;
const CUDA_LIBRARIES = /^libcublasLt\.so\.\d+$/;
/** As CMakeLists.txt writes its default into the backend. */
const CUDA_ARCHITECTURES = '80, 90a-real';

const root = path.join(__dirname, '..');
const out = path.join(root, 'build', 'prebuild');
const manifest = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'));

/** GNU's names of processors, by Node's. */
const GNU_CPUS = { x64: 'x86_64', arm64: 'aarch64' };

const PLATFORM_PACKAGES = [
  {
    name: '@uniproc/linux-x64',
    cpu: 'x64',
    file: 'uniproc.node',
    description: 'The addon of uniproc for Linux on x86-64 with glibc',
    contents: "It contains GCC's libstdc++, under GPL-3.0 with the GCC Runtime Library Exception.",
  },
  {
    name: '@uniproc/linux-arm64',
    cpu: 'arm64',
    file: 'uniproc.node',
    description: 'The addon of uniproc for Linux on arm64 with glibc',
    contents: "It contains GCC's libstdc++, under GPL-3.0 with the GCC Runtime Library Exception.",
  },
  {
    name: '@uniproc/linux-x64-cuda',
    cpu: 'x64',
    file: 'uniproc_cuda.so',
    description: 'The CUDA backend of uniproc for Linux on x86-64 with glibc',
    contents:
      'It has machine code for compute capabilities 8.0 and 9.0a, and PTX for all later than 8.0. ' +
      "It contains GCC's libstdc++, under GPL-3.0 with the GCC Runtime Library Exception, and the " +
      "CUDA runtime (cudart_static), which NVIDIA's CUDA Toolkit EULA lists as redistributable. " +
      'The NVIDIA driver, cuBLASLt and NCCL are not in it and come from the host.',
  },
];

class LeftOut extends Error {}

function run(command, args, options = {}) {
  return execFileSync(command, args, { cwd: root, encoding: 'utf8', ...options });
}

function exists(command) {
  return spawnSync(command, ['--version']).error === undefined;
}

/** Runs cmake-js; returns its output, which is shown only if it fails. */
function cmake(args, env = {}) {
  const script = require.resolve('cmake-js/bin/cmake-js');
  const { status, stdout, stderr } = spawnSync(process.execPath, [script, ...args], {
    cwd: root,
    encoding: 'utf8',
    env: { ...process.env, CUDAARCHS: undefined, ...env },
    maxBuffer: 2 ** 28,
  });
  if (status !== 0) throw new Error(`cmake-js ${args.join(' ')} failed:\n${stdout}${stderr}`);
  return stdout + stderr;
}

function buildTarget(folder, target, args = [], env = {}) {
  cmake(
    ['build', '-O', folder, '-T', target, '--parallel', String(os.availableParallelism()), ...args],
    env,
  );
}

/** Builds the addon of a processor; returns its path. */
function buildAddon(cpu) {
  // Made of the objects of the normal build.
  let folder = path.join(root, 'build');
  const args = [];
  let env = {};
  if (cpu !== process.arch) {
    const gnu = GNU_CPUS[cpu];
    const compiler = `${gnu}-linux-gnu-g++`;
    if (!exists(compiler)) {
      throw new LeftOut(
        `no cross compiler ${compiler}: apt-get install g++-${gnu.replace('_', '-')}-linux-gnu`,
      );
    }
    folder = path.join(folder, `linux-${cpu}`);
    args.push('--CDCMAKE_SYSTEM_NAME=Linux', `--CDCMAKE_SYSTEM_PROCESSOR=${gnu}`);
    args.push(`--CDCMAKE_CXX_COMPILER=${compiler}`);
    env = { UNIPROC_CUDA: '0' };
  }
  buildTarget(folder, 'uniproc_prebuilt', args, env);
  return path.join(folder, 'prebuilt', 'uniproc.node');
}

/** Builds the CUDA backend; returns its path. */
function buildCudaBackend() {
  if (process.arch !== 'x64') throw new LeftOut('not cross-compiled: run it on x64');
  const [, reason] = /no CUDA backend: (.*)\)/.exec(cmake(['configure'])) ?? [];
  if (reason) throw new LeftOut(`${reason}; docs/cuda.md has the requirements`);
  buildTarget(path.join(root, 'build'), 'uniproc_cuda_prebuilt');
  const file = path.join(root, 'build', 'prebuilt', 'uniproc_cuda.so');
  if (!readFileSync(file).includes(`${CUDA_ARCHITECTURES}\0`)) {
    throw new Error(`${file} is not built for ${CUDA_ARCHITECTURES}; delete build/CMakeCache.txt`);
  }
  return file;
}

/** Throws if the file needs more of its host than the platform packages state. */
function checkRequirements(file, floor = GLIBC_FLOOR) {
  const text = run('objdump', ['-p', file]);
  const allowed = file.endsWith('_cuda.so') ? [HOST_LIBRARIES, CUDA_LIBRARIES] : [HOST_LIBRARIES];
  for (const [, library] of text.matchAll(/^ *NEEDED +(\S+)$/gm)) {
    if (!allowed.some((pattern) => pattern.test(library))) {
      throw new Error(`${file} needs ${library}, which a host may not have`);
    }
  }
  if (/^ *(RPATH|RUNPATH) /m.test(text)) throw new Error(`${file} has a path of the build machine`);
  // A required version that is not a number, such as GLIBC_PRIVATE, is never allowed.
  for (const [, version] of text.matchAll(/ GLIBC_(\S+)$/gm)) {
    const [major, minor] = version.split('.').map(Number);
    const [floorMajor, floorMinor] = floor.split('.').map(Number);
    if (major < floorMajor || (major === floorMajor && minor <= floorMinor)) continue;
    const symbols = run('objdump', ['-T', file])
      .split('\n')
      .filter((line) => line.includes(`GLIBC_${version})`))
      .map((line) => line.split(' ').at(-1));
    throw new Error(
      `${file} needs glibc ${version} for ${symbols.join(', ')}; the platform packages state ${floor}`,
    );
  }
}

/** Packs a folder; returns the tarball's name. */
function pack(folder) {
  const [{ filename, size, unpackedSize }] = JSON.parse(
    run('npm', ['pack', folder, '--ignore-scripts', '--json', '--pack-destination', out]),
  );
  const mib = (bytes) => `${(bytes / 2 ** 20).toFixed(2)} MiB`;
  console.log(`${filename}: ${mib(size)}, ${mib(unpackedSize)} unpacked`);
  if (size > MAX_PACKED_BYTES) {
    throw new Error(`${filename} is larger than ${mib(MAX_PACKED_BYTES)}`);
  }
  return filename;
}

function writeJson(file, value) {
  writeFileSync(file, `${JSON.stringify(value, null, 2)}\n`);
}

function packPlatformPackage({ name, cpu, file, description, contents }) {
  const built = file === 'uniproc.node' ? buildAddon(cpu) : buildCudaBackend();
  checkRequirements(built);
  const folder = path.join(out, name);
  mkdirSync(folder, { recursive: true });
  copyFileSync(built, path.join(folder, file));
  copyFileSync(path.join(root, 'LICENSE'), path.join(folder, 'LICENSE'));
  writeFileSync(
    path.join(folder, 'README.md'),
    `# ${name}\n\n${description} ${GLIBC_FLOOR} or later, an optional dependency of ` +
      `[uniproc](${manifest.homepage}). ${contents}\n`,
  );
  const { version, license, repository, homepage, bugs, engines } = manifest;
  writeJson(path.join(folder, 'package.json'), {
    name,
    version,
    description: `${description} ${GLIBC_FLOOR} or later`,
    license,
    repository,
    homepage,
    bugs,
    files: [file],
    os: ['linux'],
    cpu: [cpu],
    libc: ['glibc'],
    engines,
    // Yarn's Plug'n'Play would leave the file in an archive, which the dynamic loader cannot read.
    preferUnplugged: true,
    publishConfig: { access: 'public' },
  });
  pack(folder);
}

/** Compiles lib/ into a folder: what `npm run build:ts` and `npm run build:types` write into dist/. */
function compile(folder) {
  for (const [script, ...args] of [
    [require.resolve('typescript/bin/tsc'), '-p', 'tsconfig.build.json', '--outDir', folder],
    [path.join(__dirname, 'build-esm.js'), folder],
    [path.join(__dirname, 'build-types.js'), folder],
  ]) {
    run(process.execPath, [script, ...args], { stdio: 'inherit' });
  }
}

/**
 * Packs uniproc itself: the files of `npm pack`, with dist/ of the sources as they are now. Its optional
 * dependencies are `names`; Yarn fails on one that does not exist.
 */
function packMain(names) {
  const options = ['--ignore-scripts', '--silent', '--pack-destination', out];
  const tarball = path.join(out, run('npm', ['pack', ...options]).trim());
  const folder = path.join(out, 'uniproc');
  mkdirSync(folder);
  run('tar', ['-xzf', tarball, '-C', folder, '--strip-components=1']);
  rmSync(path.join(folder, 'dist'), { recursive: true, force: true });
  compile(path.join(folder, 'dist'));

  const published = { ...manifest, preferUnplugged: true };
  published.scripts = { install: manifest.scripts.install };
  delete published.devDependencies;
  published.optionalDependencies = Object.fromEntries(
    names.map((name) => [name, manifest.version]),
  );
  writeJson(path.join(folder, 'package.json'), published);
  pack(folder);
}

function main(requireAll) {
  if (!exists('cmake')) throw new Error('npm run prebuild requires CMake');
  if (!exists('objdump')) throw new Error('npm run prebuild requires objdump, of binutils');
  rmSync(out, { recursive: true, force: true });
  mkdirSync(out, { recursive: true });
  const packed = [];
  for (const platformPackage of PLATFORM_PACKAGES) {
    try {
      packPlatformPackage(platformPackage);
      packed.push(platformPackage.name);
    } catch (error) {
      if (!(error instanceof LeftOut) || requireAll) throw error;
      console.log(`${platformPackage.name} is left out: ${error.message}`);
    }
  }
  packMain(packed);
}

if (require.main === module) {
  try {
    main(process.argv.includes('--require-all'));
  } catch (error) {
    console.error(error.message);
    process.exitCode = 1;
  }
}

module.exports = { checkRequirements, GLIBC_FLOOR, MAX_PACKED_BYTES, PLATFORM_PACKAGES };
