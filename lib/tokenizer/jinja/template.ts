/**
 * Compiles and renders a chat template as transformers does: jinja2's ImmutableSandboxedEnvironment with
 * trim_blocks, lstrip_blocks, loop controls, `generation` blocks, json.dumps as `tojson`,
 * raise_exception and strftime_now (transformers/utils/chat_template_utils.py).
 */
import { fromJs } from './convert';
import { TemplateSyntaxError } from './errors';
import { Interpreter } from './interpreter';
import type { Frame } from './nodes';
import { parse } from './parser';
import { resolveScopes } from './scopes';
import type { Value } from './values';

export class JinjaTemplate {
  private readonly frame: Frame;

  /** Throws TemplateSyntaxError for a template that jinja2 does not compile. */
  constructor(source: string) {
    try {
      this.frame = parse(source);
      resolveScopes(this.frame);
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      throw new TemplateSyntaxError('the template is nested too deeply', 1);
    }
  }

  /** Throws TemplateRuntimeError; ConversionError for a variable that is not plain data. */
  render(variables: Readonly<Record<string, unknown>>): string {
    const values = new Map<string, Value>();
    for (const [name, value] of Object.entries(variables)) {
      if (value !== undefined) values.set(name, fromJs(value, name));
    }
    return new Interpreter(values).render(this.frame);
  }
}
