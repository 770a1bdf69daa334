/** Old names of options and fields: they still work, and warn once in a process. */

/** Codes of old names, for `node --throw-deprecation` and for filters; never reused. */
const CODES = {
  distributedTimeout: 'UNIPROC_DEP0001',
  timeout: 'UNIPROC_DEP0002',
  timeToFirstToken: 'UNIPROC_DEP0003',
  interTokenLatency: 'UNIPROC_DEP0004',
} as const;

export type OldName = keyof typeof CODES;

const warned = new Set<OldName>();

/** Warns, once in a process, that `oldName` is now `newName`. */
export function deprecate(oldName: OldName, newName: string): void {
  if (warned.has(oldName)) return;
  warned.add(oldName);
  process.emitWarning(`${oldName} is deprecated; use ${newName}`, {
    type: 'DeprecationWarning',
    code: CODES[oldName],
  });
}

/**
 * Moves a deprecated option to its new name, in a copy of `options`. `fail` makes the error for options
 * that have both with different values.
 */
export function renameOption<Options extends object>(
  options: Options,
  oldName: OldName & keyof Options,
  newName: string & keyof Options,
  fail: (message: string) => Error,
): Options {
  if (options[oldName] === undefined) return options;
  const { [oldName]: old, ...rest } = options;
  deprecate(oldName, newName);
  const given = (rest as Options)[newName];
  if (given !== undefined && (given as unknown) !== old) {
    throw fail(`${newName} is ${String(given)}, but ${oldName}, its old name, is ${String(old)}`);
  }
  return { ...rest, [newName]: old } as unknown as Options;
}

/** Gives an object a field's old name: not enumerable, so that printing it does not warn. */
export function aliasField<Fields extends object>(
  fields: Fields,
  oldName: OldName,
  newName: string & keyof Fields,
): void {
  const get = (): unknown => {
    deprecate(oldName, newName);
    return fields[newName];
  };
  Object.defineProperty(fields, oldName, { get, enumerable: false, configurable: true });
}
