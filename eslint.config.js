'use strict';

const js = require('@eslint/js');
const globals = require('globals');
const tseslint = require('typescript-eslint');
const { eslintConfigs } = require('./scripts/rooms');

module.exports = tseslint.config(
  { ignores: ['build', 'dist', 'coverage'] },
  js.configs.recommended,
  tseslint.configs.strictTypeChecked,
  {
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: __dirname } },
    linterOptions: { reportUnusedDisableDirectives: 'error' },
    rules: {
      // Errors say with which value: a number prints as one expects.
      '@typescript-eslint/restrict-template-expressions': ['error', { allowNumber: true }],
      '@typescript-eslint/no-confusing-void-expression': ['error', { ignoreArrowShorthand: true }],
      // As tsc has it: an argument may say by its name that it is not used.
      '@typescript-eslint/no-unused-vars': ['error', { argsIgnorePattern: '^_' }],
    },
  },
  // Which room of lib/ may import which, and how long its files may be.
  ...eslintConfigs(),
  {
    // A worker class for a test may have nothing in it.
    files: ['test/**'],
    rules: { '@typescript-eslint/no-extraneous-class': 'off' },
  },
  {
    // Scripts and examples are plain CommonJS, run as they are.
    files: ['**/*.js'],
    extends: [tseslint.configs.disableTypeChecked],
    languageOptions: { sourceType: 'commonjs', globals: globals.node },
    rules: {
      '@typescript-eslint/no-require-imports': 'off',
      'no-redeclare': ['error', { builtinGlobals: false }],
    },
  },
);
