/**
 * The packages that `npm run prebuild` makes: the platform packages with the prebuilt addons, and the
 * package that depends on them; unpacked in another folder, and installed by the package managers.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';

interface Manifest {
  name: string;
  version: string;
  scripts: Record<string, string>;
  optionalDependencies: Record<string, string>;
}

interface Prebuild {
  checkRequirements: (file: string, floor?: string) => void;
  GLIBC_FLOOR: string;
  MAX_PACKED_BYTES: number;
  PLATFORM_PACKAGES: { name: string; cpu: 'x64' | 'arm64'; file: string }[];
}

const root = path.join(__dirname, '..', '..');
const { checkRequirements, GLIBC_FLOOR, MAX_PACKED_BYTES, PLATFORM_PACKAGES } =
  // eslint-disable-next-line @typescript-eslint/no-require-imports -- scripts have no types
  require('../../scripts/prebuild') as Prebuild;
const packages = path.join(root, 'build', 'prebuild');
const app = mkdtempSync(path.join(tmpdir(), 'uniproc-package-'));
const installed = path.join(app, 'node_modules', 'uniproc');
const platformName = `@uniproc/${process.platform}-${process.arch}`;
const platformFolder = path.join(app, 'node_modules', platformName);
/** What scripts/outsider.sh printed, which packs the packages first. */
let doors: string;
let manifest: Manifest;
/** The platform packages that this machine can build: all where CI runs. */
let packed: typeof PLATFORM_PACKAGES;

const read = (file: string) => readFileSync(file, 'utf8');
const unpack = (tarball: string, folder: string) => {
  mkdirSync(folder, { recursive: true });
  const options = ['-C', folder, '--strip-components=1'];
  execFileSync('tar', ['-xzf', path.join(packages, tarball), ...options]);
};
const tarballOf = (name: string) =>
  `${name.replace('@', '').replace('/', '-')}-${manifest.version}.tgz`;

/**
 * The architectures of a shared object's fat binaries. Each has a header of 16 bytes (magic, version,
 * size of the rest), then entries: kind (1 PTX, 2 machine code), size of the entry's header at 4, of
 * its content at 8, architecture at 28.
 */
function codeOf(file: Buffer): Set<string> {
  const magic = Buffer.from([0x50, 0xed, 0x55, 0xba]);
  const found = new Set<string>();
  for (let start = file.indexOf(magic); start >= 0; start = file.indexOf(magic, start + 4)) {
    const end = start + 16 + Number(file.readBigUInt64LE(start + 8));
    for (let entry = start + 16; entry < end;) {
      const prefix = file.readUInt16LE(entry) === 1 ? 'compute' : 'sm';
      found.add(`${prefix}_${file.readUInt32LE(entry + 28)}`);
      entry += file.readUInt32LE(entry + 4) + Number(file.readBigUInt64LE(entry + 8));
    }
  }
  return found;
}

beforeAll(() => {
  const script = path.join(root, 'scripts', 'outsider.sh');
  const options = ['npm', 'npm_with_scripts', 'pnpm', 'yarn'];
  const { stdout, stderr } = spawnSync('bash', [script, ...options], { encoding: 'utf8' });
  if (stdout.includes('failed  prebuild')) throw new Error(stderr);
  doors = stdout;
  manifest = JSON.parse(read(path.join(packages, 'uniproc', 'package.json'))) as Manifest;
  unpack(tarballOf('uniproc'), installed);
  packed = PLATFORM_PACKAGES.filter(({ name }) => name in manifest.optionalDependencies);
  for (const { name } of packed) unpack(tarballOf(name), path.join(app, 'node_modules', name));
  // The dependencies, which `npm install` adds.
  symlinkSync(path.join(root, 'node_modules'), path.join(installed, 'node_modules'));
  // Builds, which take minutes when there are no object files.
}, 1_800_000);

afterAll(() => {
  rmSync(app, { recursive: true, force: true });
});

function node(...args: string[]): string {
  return execFileSync(process.execPath, args, { cwd: app, encoding: 'utf8' });
}

describe('package managers', () => {
  test.each(['npm', 'npm_with_scripts', 'pnpm', 'yarn'])(
    '%s installs it without a compiler, and it streams a story',
    (door) => {
      expect(doors).toMatch(new RegExp(`^passed  ${door} `, 'm'));
    },
  );

  test('a clone neither depends on packages that are not published yet nor is published', () => {
    const own = JSON.parse(read(path.join(root, 'package.json'))) as Manifest;
    expect(own.optionalDependencies).toBeUndefined();
    expect(own.version).toBe(manifest.version);
    const publish = spawnSync('npm', ['run', 'prepublishOnly'], { cwd: root, encoding: 'utf8' });
    expect(publish.status).not.toBe(0);
    expect(publish.stdout).toContain('npm run prebuild:all');
    expect(Object.keys(manifest.scripts)).toEqual(['install']);
  });
});

test('uniproc has the files of each way to import it, and the declarations of nothing else', () => {
  const files = readdirSync(path.join(installed, 'dist'), { recursive: true }).map(String);
  expect(files).toEqual(expect.arrayContaining(['index.js', 'index.mjs', 'cli.js']));
  expect(files.filter((file) => /\.d\.m?ts$/.test(file)).sort()).toEqual([
    'aiSdk.d.mts',
    'aiSdk.d.ts',
    'index.d.mts',
    'index.d.ts',
  ]);
});

describe('platform packages', () => {
  test('the package of this machine is among them', () => {
    expect(packed.map(({ name }) => name)).toContain(platformName);
  });

  test('have the exact version that uniproc depends on', () => {
    expect(manifest.optionalDependencies).toEqual(
      Object.fromEntries(packed.map(({ name }) => [name, manifest.version])),
    );
  });

  test('state the platform, and run no script', () => {
    for (const { name, cpu } of packed) {
      const json = JSON.parse(read(path.join(app, 'node_modules', name, 'package.json'))) as object;
      expect(json).toMatchObject({ name, version: manifest.version, os: ['linux'], cpu: [cpu] });
      expect(json).toMatchObject({ libc: ['glibc'], preferUnplugged: true });
      expect(Object.keys(json)).not.toContain('scripts');
    }
  });

  test('contain one file of code, for the processor that they state', () => {
    for (const { name, cpu, file } of packed) {
      const folder = path.join(app, 'node_modules', name);
      expect(readdirSync(folder).sort()).toEqual(
        ['LICENSE', 'README.md', 'package.json', file].sort(),
      );
      // e_machine of the ELF header: 62 is EM_X86_64, 183 EM_AARCH64.
      const machine = readFileSync(path.join(folder, file)).readUInt16LE(18);
      expect([name, machine]).toEqual([name, { x64: 62, arm64: 183 }[cpu]]);
    }
  });

  test('are small', () => {
    const names = ['uniproc', ...packed.map(({ name }) => name)];
    for (const name of names) {
      expect(statSync(path.join(packages, tarballOf(name))).size).toBeLessThan(MAX_PACKED_BYTES);
    }
  });

  test('need no newer glibc than stated, and no library of C++', () => {
    for (const { name, file } of packed) {
      const library = path.join(app, 'node_modules', name, file);
      const symbols = execFileSync('objdump', ['-T', library], { encoding: 'utf8' });
      const versions = [...symbols.matchAll(/\bGLIBC_2\.(\d+)/g)].map(([, minor]) => Number(minor));
      expect(versions.length).toBeGreaterThan(0);
      expect(`2.${Math.max(...versions)}`).toBe(GLIBC_FLOOR);
      expect(symbols).not.toMatch(/GLIBCXX|CXXABI|GLIBC_PRIVATE/);
    }
  });

  test('the floor is the same in the documentation and in the error', () => {
    const texts = ['docs/install.md', 'lib/native/platformPackage.ts'];
    for (const file of texts) {
      const floors = [...read(path.join(root, file)).matchAll(/glibc (2\.\d+) or later/g)];
      expect(floors.length).toBeGreaterThan(0);
      for (const [, floor] of floors) expect([file, floor]).toEqual([file, GLIBC_FLOOR]);
    }
  });

  test('an addon above the floor is not packed', () => {
    const addon = path.join(platformFolder, 'uniproc.node');
    expect(() => checkRequirements(addon)).not.toThrow();
    expect(() => checkRequirements(addon, '2.33')).toThrow(
      /uniproc\.node needs glibc 2\.34 for .*pthread_create.*; the platform packages state 2\.33/,
    );
  });

  test('an addon that needs the libraries of the build machine is not packed', () => {
    const addon = path.join(root, 'build', 'Release', 'uniproc.node');
    expect(() => checkRequirements(addon)).toThrow(/uniproc\.node needs libstdc\+\+\.so\.6/);
  });

  test('the CUDA backend has machine code for 8.0 and 9.0a, and PTX', () => {
    const cuda = packed.find(({ file }) => file === 'uniproc_cuda.so');
    // Left out where there is no nvcc or cuBLASLt.
    if (!cuda) return;
    const file = readFileSync(path.join(app, 'node_modules', cuda.name, cuda.file));
    expect(codeOf(file)).toEqual(new Set(['compute_80', 'sm_80', 'sm_90']));
    // The variant of 9.0 is in the compressed part; the backend also holds CMake's list.
    expect(file.includes('80, 90a-real\0')).toBe(true);
  });
});

/** Runs `native()` of the installed package; prints the addon's file, or the error. */
const LOAD = `
  try {
    require('./node_modules/uniproc/dist/native').native();
    console.log(Object.keys(require.cache).find((file) => file.endsWith('uniproc.node')));
  } catch (error) {
    console.log(error.name, error.code, error.message);
  }`;

describe('the loader', () => {
  const built = path.join(installed, 'build', 'Release', 'uniproc.node');
  const addon = path.join(platformFolder, 'uniproc.node');
  const aside = `${platformFolder}-aside`;

  afterEach(() => {
    rmSync(path.join(installed, 'build'), { recursive: true, force: true });
    if (!existsSync(aside)) return;
    rmSync(platformFolder, { recursive: true, force: true });
    cpSync(aside, platformFolder, { recursive: true });
    rmSync(aside, { recursive: true });
  });

  test('takes the platform package', () => {
    expect(node('-e', LOAD)).toBe(`${addon}\n`);
  });

  test('prefers an addon built from source', () => {
    cpSync(addon, built);
    expect(node('-e', LOAD)).toBe(`${built}\n`);
  });

  test('without either names both, the platform and the remedies', () => {
    cpSync(platformFolder, aside, { recursive: true });
    rmSync(platformFolder, { recursive: true });
    const { glibcVersionRuntime } = (
      process.report.getReport() as { header: { glibcVersionRuntime: string } }
    ).header;
    const message = node('-e', LOAD);
    expect(message).toContain(
      `AddonUnavailableError ADDON_UNAVAILABLE no addon: ${built} and the package ${platformName} ` +
        `do not exist (${process.platform}-${process.arch}, glibc ${glibcVersionRuntime}).`,
    );
    expect(message).toContain('npm rebuild uniproc --build-from-source');
  });

  test('a prebuilt addon that does not load is named with the reason and the remedies', () => {
    cpSync(platformFolder, aside, { recursive: true });
    writeFileSync(addon, 'no shared object');
    const message = node('-e', LOAD);
    expect(message).toMatch(/^AddonUnavailableError ADDON_UNAVAILABLE cannot load .*too short/);
    expect(message).toContain(`cannot load ${addon}: `);
    expect(message).toContain('npm rebuild uniproc --build-from-source');
  });

  test('opens the CUDA backend of its package', () => {
    const backend = path.join(app, 'node_modules', `${platformName}-cuda`, 'uniproc_cuda.so');
    mkdirSync(path.dirname(backend), { recursive: true });
    writeFileSync(backend, 'no shared object');
    const script = `
      require('./node_modules/uniproc/dist/native').native().readCuda()
        .then(({ backend }) => console.log(backend.file, backend.problem.reason));`;
    expect(node('-e', script)).toContain(
      `${backend} the CUDA backend cannot be loaded: ${backend}: file too short`,
    );
  });
});

describe('the install script', () => {
  /** A PATH without compilers. */
  function install(env: Record<string, string>) {
    return spawnSync(process.execPath, ['scripts/build-native.js'], {
      cwd: installed,
      encoding: 'utf8',
      env: { PATH: app, npm_lifecycle_event: 'install', ...env },
    });
  }

  test('builds nothing where the prebuilt addon loads', () => {
    expect(install({})).toMatchObject({ status: 0, stdout: 'uniproc: using the prebuilt addon\n' });
  });

  test('builds with --build-from-source', () => {
    const { status, stdout } = install({ npm_config_build_from_source: 'true' });
    expect(status).not.toBe(0);
    expect(stdout).toContain('building');
  });

  test('builds where the prebuilt addon does not load, and says why', () => {
    const addon = path.join(platformFolder, 'uniproc.node');
    const content = readFileSync(addon);
    writeFileSync(addon, 'no shared object');
    const { status, stdout } = install({});
    writeFileSync(addon, content);
    expect(status).not.toBe(0);
    expect(stdout).toMatch(
      /^uniproc: building from source, since @uniproc\/\S+ does not load: .*too short/,
    );
  });
});

describe('npm run prebuild', () => {
  /** All programs of this machine but the cross compiler. */
  const programs = path.join(app, 'programs');

  beforeAll(() => {
    mkdirSync(programs);
    for (const folder of (process.env.PATH ?? '').split(path.delimiter)) {
      if (!existsSync(folder)) continue;
      for (const name of readdirSync(folder)) {
        const link = path.join(programs, name);
        if (name.includes('-linux-gnu-g++') || existsSync(link)) continue;
        try {
          symlinkSync(path.join(folder, name), link);
        } catch {
          // A dangling link of the same name, from another folder.
        }
      }
    }
  });

  function prebuild(...args: string[]) {
    const script = path.join(root, 'scripts', 'prebuild.js');
    const env = { ...process.env, PATH: programs };
    return spawnSync(process.execPath, [script, ...args], { encoding: 'utf8', env });
  }

  const [other, compiler] =
    process.arch === 'x64'
      ? ['@uniproc/linux-arm64', 'aarch64-linux-gnu']
      : ['@uniproc/linux-x64', 'x86-64-linux-gnu'];

  test('leaves out what this machine cannot build, and says why', () => {
    const { status, stdout } = prebuild();
    expect(status).toBe(0);
    expect(stdout).toMatch(
      new RegExp(
        `^${other} is left out: no cross compiler .*: apt-get install g\\+\\+-${compiler}$`,
        'm',
      ),
    );
    const json = JSON.parse(read(path.join(packages, 'uniproc', 'package.json'))) as Manifest;
    expect(Object.keys(json.optionalDependencies)).not.toContain(other);
    expect(Object.keys(json.optionalDependencies)).toContain(platformName);
  });

  test('prebuild:all fails where a package is left out', () => {
    const { status, stderr } = prebuild('--require-all');
    expect(status).toBe(1);
    expect(stderr).toMatch(new RegExp(`no cross compiler .*: apt-get install g\\+\\+-${compiler}`));
    expect(existsSync(path.join(packages, tarballOf('uniproc')))).toBe(false);
  });

  test('is not what npm runs before `build`', () => {
    const { scripts } = JSON.parse(read(path.join(root, 'package.json'))) as Manifest;
    // npm runs `prebuild` before `build`, and `postprebuild` only after `npm run prebuild`.
    expect(scripts.prebuild).toBe(':');
    expect(scripts.postprebuild).toBe('node scripts/prebuild.js');
    expect(scripts['prebuild:all']).toBe('node scripts/prebuild.js --require-all');
  });
});
