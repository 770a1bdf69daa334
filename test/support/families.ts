/** Selects the golden families that a number of ranks can divide. */
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';

const CHECKPOINTS = path.join(__dirname, '..', 'golden', 'checkpoints');

interface Heads {
  num_attention_heads: number;
  num_key_value_heads: number;
  intermediate_size: number;
}

function headsOf(family: string): Heads {
  const file = path.join(CHECKPOINTS, family, 'config.json');
  const config = JSON.parse(readFileSync(file, 'utf8')) as Heads & { text_config?: Heads };
  return config.text_config ?? config;
}

/** At least one; from 4 ranks on one family has two key heads, each shared by several ranks. */
export function familiesFor(worldSize: number): string[] {
  const families = readdirSync(CHECKPOINTS).filter((family) => {
    const { num_attention_heads, num_key_value_heads, intermediate_size } = headsOf(family);
    return (
      num_attention_heads % worldSize === 0 &&
      intermediate_size % worldSize === 0 &&
      (num_key_value_heads % worldSize === 0 || worldSize % num_key_value_heads === 0)
    );
  });
  const replicates = families.some((family) => headsOf(family).num_key_value_heads === 2);
  if (families.length === 0 || (worldSize >= 4 && !replicates)) {
    throw new Error(`no golden family for ${worldSize} ranks has two key heads`);
  }
  return families;
}
