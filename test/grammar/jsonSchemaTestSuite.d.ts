declare module 'json-schema-test-suite' {
  /** The files of a draft without those of optional behaviour. */
  export function loadRequiredSync(draft: 'draft3' | 'draft4'): {
    name: string;
    schemas: {
      description: string;
      schema: unknown;
      tests: { description: string; data: unknown; valid: boolean }[];
    }[];
  }[];
}
