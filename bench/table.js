// Prints rows { bench, what, value, unit } as an aligned table. Optional fields in the same unit:
// `floor` of the hardware (floor.js); `ceiling`, described by `ceilingOf`; `bound`, the maximum;
// `least`, the minimum; `peers`, [{ name, value, floor }], where `floor` is that of the peer's own card.
'use strict';

/** Three significant digits, never with an exponent. */
function figure(value) {
  if (value >= 100) return Math.round(value).toLocaleString('en-US');
  return value.toPrecision(3);
}

function remark({ value, unit, floor, bound, least, peers = [], ...row }) {
  const { ceiling, ceilingOf = 'the products alone' } = row;
  const remarks = [];
  if (floor !== undefined) {
    remarks.push(`${(value / floor).toFixed(2)} of the floor, ${figure(floor)} ${unit}`);
  }
  if (ceiling !== undefined) {
    remarks.push(`${(value / ceiling).toFixed(2)} of ${ceilingOf}, ${figure(ceiling)} ${unit}`);
  }
  if (bound !== undefined) {
    remarks.push(`${value <= bound ? 'within' : 'ABOVE'} ${shortest(bound)} ${unit}`);
  }
  if (least !== undefined) {
    remarks.push(`${value >= least ? 'above' : 'BELOW'} ${shortest(least)} ${unit}`);
  }
  for (const { name, value: ofPeer, floor: itsFloor } of peers) {
    const ratio = itsFloor === undefined ? '' : `, ${(ofPeer / itsFloor).toFixed(2)} of its floor`;
    remarks.push(`${name} ${figure(ofPeer)}${ratio}`);
  }
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
