/**
 * A registry of npm packages that holds the tarballs of a folder, on a free port of 127.0.0.1: lets a
 * package manager choose among the platform packages before they are published. Prints its address.
 *
 *     node scripts/outsider/registry.js build/prebuild
 */
'use strict';

const { execFileSync } = require('node:child_process');
const { createHash } = require('node:crypto');
const { readFileSync, readdirSync } = require('node:fs');
const http = require('node:http');
const path = require('node:path');

const folder = process.argv[2];
const packages = new Map();

const server = http.createServer((request, response) => {
  const name = decodeURIComponent(request.url.slice(1));
  const found = packages.get(name);
  if (found) {
    response.setHeader('content-type', 'application/json');
    response.end(JSON.stringify(found));
  } else if (/^[\w.-]+\.tgz$/.test(name) && readdirSync(folder).includes(name)) {
    response.end(readFileSync(path.join(folder, name)));
  } else {
    response.writeHead(404).end('{}');
  }
});

server.listen(0, '127.0.0.1', () => {
  const address = `http://127.0.0.1:${server.address().port}`;
  for (const file of readdirSync(folder).filter((name) => name.endsWith('.tgz'))) {
    const tarball = path.join(folder, file);
    const json = execFileSync('tar', ['-xzOf', tarball, 'package/package.json'], {
      encoding: 'utf8',
    });
    const manifest = JSON.parse(json);
    const hash = createHash('sha512').update(readFileSync(tarball)).digest('base64');
    const dist = { tarball: `${address}/${file}`, integrity: `sha512-${hash}` };
    packages.set(manifest.name, {
      name: manifest.name,
      'dist-tags': { latest: manifest.version },
      // Yarn does not install what was published within the last day.
      time: { [manifest.version]: '2020-01-01T00:00:00.000Z' },
      versions: { [manifest.version]: { ...manifest, dist } },
    });
  }
  console.log(address);
});
