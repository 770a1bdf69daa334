// Prints rows { bench, what, value, unit } as an aligned table. Optional fields in the same unit:
// `ceiling`, described by `ceilingOf`; `bound`, the maximum; `least`, the minimum; `peer`, llama.cpp's
// figure.
'use strict';

/** Three significant digits, never with an exponent. */
function figure(value) {
  if (value >= 100) return Math.round(value).toLocaleString('en-US');
  return value.toPrecision(3);
}

function remark({ value, unit, ceiling, ceilingOf = 'the products alone', bound, least, peer }) {
  const remarks = [];
  if (ceiling !== undefined) {
    remarks.push(`${(value / ceiling).toFixed(2)} of ${ceilingOf}, ${figure(ceiling)} ${unit}`);
  }
  if (bound !== undefined) {
    remarks.push(`${value <= bound ? 'within' : 'ABOVE'} ${shortest(bound)} ${unit}`);
  }
  if (least !== undefined) {
    remarks.push(`${value >= least ? 'above' : 'BELOW'} ${shortest(least)} ${unit}`);
  }
  if (peer !== undefined) remarks.push(`llama.cpp ${figure(peer)}`);
  return remarks.join('; ');
}

/** 20, not 20.0: a bound is exact, not measured. */
function shortest(bound) {
  return Number.isInteger(bound) && bound < 100 ? String(bound) : figure(bound);
}

function printTable(rows) {
  const cells = rows.map((row) => [
    row.bench,
    row.what,
    `${figure(row.value)} ${row.unit}`,
    remark(row),
  ]);
  const widths = (cells[0] ?? []).map((_, column) =>
    Math.max(...cells.map((row) => row[column].length)),
  );
  for (const row of cells) {
    const aligned = row.map((cell, i) =>
      i === 2 ? cell.padStart(widths[i]) : cell.padEnd(widths[i]),
    );
    console.log(aligned.join('   ').trimEnd());
  }
}

module.exports = { figure, printTable };
