# Builds the addon's CPU backend without CMake and, in a clone, the test addon. CMakeLists.txt
# builds the same and more: keep both in sync. gyp has no flags per file, so target attributes
# select SIMD.
{
  'variables': {
    # Node's and node-addon-api's headers are system headers, so that our warnings exclude them. The
    # quotes are for the shell that runs the compiler, since a path may have spaces.
    'system_headers': [
      '-isystem', '<!(printf "\'%s\'" "<(node_root_dir)/include/node")',
      '-isystem', '<!(printf "\'%s\'" "$(node -p "path.dirname(require.resolve(\'node-addon-api/napi.h\'))")")',
    ],
    'warnings': [
      '-Wall', '-Wextra', '-Wpedantic', '-Wshadow',
      # Only in a clone: a user's compiler may be newer than any that we have tried.
      '<!@(test -d native/addon_testing && echo -Werror || true)',
    ],
    # Excluded from the package.
    'has_testing': '<!(test -d native/addon_testing && echo 1 || echo 0)',
  },
  'target_defaults': {
    'include_dirs': ['native'],
    # Without node-gyp's own, which have Node's headers once more and do not quote spaces.
    'include_dirs/': [['exclude', '.'], ['include', '^native$']],
    'defines': [
      'NAPI_VERSION=8', 'NODE_ADDON_API_CPP_EXCEPTIONS', 'NDEBUG',
      # Keeps an exception thrown into a terminating worker thread from ending the process.
      'NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS',
    ],
    'cflags!': ['-Wno-unused-parameter'],
    'cflags_cc!': ['-fno-exceptions', '-fno-rtti', '-std=gnu++17', '-std=gnu++20'],
    'cflags_cc': [
      '-std=c++20', '-pthread', '-fvisibility=hidden', '-fvisibility-inlines-hidden',
      '-ffp-contract=off', '<@(warnings)', '<@(system_headers)',
    ],
    'ldflags': ['-pthread', '-s'],
    'xcode_settings': {
      'MACOSX_DEPLOYMENT_TARGET': '11.0',
      'CLANG_CXX_LANGUAGE_STANDARD': 'c++20',
      'GCC_ENABLE_CPP_EXCEPTIONS': 'YES',
      'GCC_ENABLE_CPP_RTTI': 'YES',
      'GCC_SYMBOLS_PRIVATE_EXTERN': 'YES',
      'OTHER_CFLAGS': ['-ffp-contract=off', '<@(warnings)', '<@(system_headers)'],
    },
  },
  'targets': [
    {
      # Compiled once for both addons: all sources except the module's entry point.
      'target_name': 'uniproc_shared',
      'type': 'static_library',
      # The CPU sources, one path per line; CMakeLists.txt reads the same list.
      'sources': ['<!@(grep -v native/addon/addon.cpp native/sources.txt)'],
    },
    {
      'target_name': 'uniproc',
      'dependencies': ['uniproc_shared'],
      'sources': ['native/addon/addon.cpp'],
    },
  ],
  'conditions': [
    ['has_testing == 1', {
      'targets': [
        {
          'target_name': 'uniproc_testing',
          'dependencies': ['uniproc_shared'],
          'sources': ['<!@(ls native/addon_testing/*.cpp)'],
        },
      ],
    }],
  ],
}
