// What a reader can do with the page beyond reading it. Without this script everything is there all the same.
"use strict";
(() => {
  const WORDS = {
    search: "Filter rows",
    info: "_TOTAL_ rows",
    infoEmpty: "0 rows",
    infoFiltered: "of _MAX_",
    zeroRecords: "No row matches.",
    emptyTable: "No rows.",
    aria: {
      orderable: ": sort by this column",
      orderableRemove: ": back to the protocol's order",
      orderableReverse: ": sort the other way round",
    },
  };

  for (const block of document.querySelectorAll("pre.command")) addCopyButton(block);
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    const numbers = heads.flatMap((head, index) => (head.classList.contains("n") ? [index] : []));
    const texts = heads.flatMap((head, index) => (head.classList.contains("n") ? [] : [index]));
    const shown = new DataTable(table, {
      autoWidth: false,
      paging: false,
      searching: table.tBodies[0].rows.length > 5,
      // The protocol's order, until a reader asks for another; a third press brings it back.
      order: [],
      columnDefs: [
        { targets: numbers, type: "num", orderSequence: ["desc", "asc", ""] },
        { targets: texts, orderSequence: ["asc", "desc", ""] },
      ],
      layout: { topStart: table.tBodies[0].rows.length > 5 ? "info" : null, topEnd: table.tBodies[0].rows.length > 5 ? "search" : null, bottomStart: null, bottomEnd: null },
      language: WORDS,
    });
    openRows(table, shown);
    followChoice(table, shown);
  }

  // The link of a row to what is said of it further down becomes a button that shows it in place.
  function openRows(table, shown) {
    for (const link of table.querySelectorAll("a.more")) {
      const detail = document.getElementById(link.hash.slice(1));
      const button = document.createElement("button");
      button.type = "button";
      button.className = "more";
      button.setAttribute("aria-label", link.getAttribute("aria-label"));
      button.setAttribute("aria-controls", detail.id);
      const row = link.closest("tr");
      link.replaceWith(button);
      detail.className = "opened";
      detail.closest("details").remove();
      setOpen(false);
      button.addEventListener("click", () => setOpen(button.getAttribute("aria-expanded") !== "true"));

      function setOpen(isOpen) {
        button.setAttribute("aria-expanded", String(isOpen));
        button.textContent = isOpen ? "\u2212" : "+";
        const child = shown.row(row).child;
        if (isOpen) child(detail).show();
        else child.remove();
      }
    }
    const rest = document.getElementById(`${table.id}-details`);
    if (rest) rest.remove();
  }

  // A view sorts by what it shows.
  function followChoice(table, shown) {
    const view = table.closest(".view");
    if (!view) return;
    view.addEventListener("change", (event) => {
      if (event.target.type !== "radio") return;
      const figure = event.target.value === "together" ? "measured" : event.target.value;
      for (const cell of table.querySelectorAll("td.place")) {
        cell.dataset.order = cell.dataset[figure] ?? "";
      }
      shown.rows().invalidate("dom").draw();
    });
  }

  function addCopyButton(block) {
    const around = document.createElement("div");
    around.className = "copied";
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.setAttribute("aria-label", "Copy the command");
    block.replaceWith(around);
    around.append(block, button);
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(block.textContent);
        button.textContent = "Copied";
      } catch {
        // Not every browser lets a page from disk write to the clipboard: the reader presses the keys.
        getSelection().selectAllChildren(block);
        button.textContent = "Selected";
      }
      setTimeout(() => (button.textContent = "Copy"), 2000);
    });
  }
})();
