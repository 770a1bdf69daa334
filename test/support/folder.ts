/** Temporary folders of test files. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';

const folders: string[] = [];

afterAll(async () => {
  await Promise.all(folders.map((folder) => rm(folder, { recursive: true })));
});

/** Makes a folder with `files`, each given as its content or as a value to write as JSON. */
export async function folderWith(files: Record<string, unknown>): Promise<string> {
  const folder = await mkdtemp(path.join(tmpdir(), 'uniproc-test-'));
  folders.push(folder);
  for (const [name, content] of Object.entries(files)) {
    const isContent = typeof content === 'string' || Buffer.isBuffer(content);
    await writeFile(path.join(folder, name), isContent ? content : JSON.stringify(content));
  }
  return folder;
}
